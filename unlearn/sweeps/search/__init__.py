"""A search by Optuna over the jobs of a sweep: its space and settings, what a trial is judged by, its study."""
