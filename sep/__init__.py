"""Self-Ensemble Protection in pure torch: tensors in, tensors out.

Chen et al., "Self-Ensemble Protection: Training Checkpoints Are Good Data Protectors", ICLR 2023, arXiv 2211.12005.
Images are grey levels 0..255 everywhere, `(B, C, H, W)`; networks normalise inside.
"""
