"""The built-in heads: region, temporal, mask; and the playground. They enter by the same door as a stranger's."""
