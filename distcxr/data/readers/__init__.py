"""Ways of turning sample ids into pixels, behind `distcxr.data.loader.PixelReader`; `choose` picks one."""
