"""Train or evaluate a ViT in PyTorch: `python train_torch.py --help`."""

from twinvit.start import main

if __name__ == "__main__":
    main("torch")
