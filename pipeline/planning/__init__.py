"""What distilling will cost, worked out before it is paid."""
