"""Study files: what a study is, and how its file is read and edited."""
