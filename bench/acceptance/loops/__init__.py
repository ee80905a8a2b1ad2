"""The whole loop in every engine that is there, on a bundle, on engines compiled here, and at the true shapes."""
