"""Functions and classes of the public Python API that only combine other packages; `medcl3d` exports them."""
