"""Networks of torchvision and timm by name, their heads, and their weights: loaded, imported, averaged, exported."""
