"""The Hugging Face Hub, and mirrors of it: what is there (`client`), and what of a repository is taken (`choose`)."""
