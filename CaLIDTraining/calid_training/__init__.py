"""The headless companion of `calid`: prepares data, trains the models, judges them."""
