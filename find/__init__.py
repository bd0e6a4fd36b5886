"""Stage 3: find the odd image in a folder, and wrong labels in a data set, on cached features."""
