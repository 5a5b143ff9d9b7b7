"""`twinvit parity`, `curves` and the noise rule: proofs that two training curves are one."""
