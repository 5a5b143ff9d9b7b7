"""Train or evaluate a ViT in PyTorch: `python train_torch.py --help`."""

from twinvit.training.command import main

if __name__ == "__main__":
    main("torch")
