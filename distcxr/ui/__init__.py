"""`distcxr ui`: a page on this machine that shows runs' answers to an X-ray, and their worst errors. Needs NiceGUI."""
