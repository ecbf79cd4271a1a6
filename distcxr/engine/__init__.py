"""Training and evaluation: what joins the other packages."""
