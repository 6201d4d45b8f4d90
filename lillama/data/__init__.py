"""Text into hashed blocks of tokens; local files and the Hub alike."""
