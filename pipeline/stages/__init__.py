"""The five stages, in the order of the data, and what runs them: sequence, addition, sweep."""
