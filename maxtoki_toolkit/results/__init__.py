"""Results in `.uns`: what there is (`schema`), how it is written and read (`store`), and what lies in files of its own."""
