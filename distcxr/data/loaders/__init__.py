"""Ways of turning files into pixels, behind `distcxr.data.loader.PixelReader`; `choose` picks one."""
