"""Real texts for real language models, with their licences (data/README.md), and the script that made them."""
