"""Networks: sparse U-Net, densification, dense 3D U-Net, and the pre-training model that joins them."""
