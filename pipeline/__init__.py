"""The stages and what they are made of: corpus, teachers, cache, students, training, scoring."""
