"""The limiter inside frameworks and clients, a file each; what they share needs none of them."""
