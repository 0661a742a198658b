"""The dataset as it leaves the house: five formats, marks in the images, signed manifests."""
