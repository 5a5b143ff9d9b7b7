"""Train the PyTorch twin: `python train_torch.py --help`."""

from torch_vit.train import main

if __name__ == "__main__":
    main()
