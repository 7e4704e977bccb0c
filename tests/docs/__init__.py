"""The pages: what is generated is fresh, links lead somewhere, examples run."""
