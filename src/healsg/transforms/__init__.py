"""Transforms of whole batches: pure functions of tensors and of each sample's own draw."""
