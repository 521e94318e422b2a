"""Code that producer, consumer and tickpipe share."""
