"""Where a network looks: Grad-CAM heat maps, and how well they meet what radiologists drew."""
