"""What a device would make of a model, computed and not measured."""
