"""Table 2 of trigueros2018 on a pretrained trunk: networks that differ in their last layer alone, on many seeds."""
