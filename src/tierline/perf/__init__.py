"""Pure predictions: learning curves, prices, speed-up, and the bound that nothing can beat."""
