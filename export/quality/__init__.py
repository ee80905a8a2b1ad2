"""What an export measures of itself, and how it fits what it rounds."""
