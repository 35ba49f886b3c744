"""The data set: files, batches, augmentation, and conversion of users' photos."""

# Fashion-MNIST's class names, by label (0 to 9).
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
