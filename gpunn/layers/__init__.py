"""The layers: formulas with their gradients."""
