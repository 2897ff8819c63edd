"""The passes: one idea a file; each opens with the algebra or the rule it implements."""
