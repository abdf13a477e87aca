"""From a corpus to a comparison: recipes, experiments, benchmark."""
