"""What `tierline load` is made of: prompts and pictures of wanted sizes, a streaming client, the replay by the clock."""
