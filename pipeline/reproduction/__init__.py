"""The paper's CIFAR-10 protocol on one device, with torch, torchvision and pyarrow alone; `pipeline/reproduce.py` is its entry point."""
