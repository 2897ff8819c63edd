"""The runtimes: one file or folder each; a backend lowers, builds and opens, and knows no pass."""
