"""What a device could achieve with a model: computed, not measured."""
