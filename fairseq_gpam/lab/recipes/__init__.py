"""Standard tasks from archive to score: recipes as data, corpora, stages, and run folders that survive interruption."""
