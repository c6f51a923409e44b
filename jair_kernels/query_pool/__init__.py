"""Pooling with scores x queries^T, the core of absorbed latent resampling; a building block without a public
function."""
