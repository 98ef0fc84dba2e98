"""Where new lesions are expected: conditional logistic regression on features in millimetres."""
