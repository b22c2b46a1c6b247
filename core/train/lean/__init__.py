"""Training passes on a CPU that leave out arithmetic and memory that the loss does not need."""
