"""Raw interaction logs: settings, readers, filters, and the prepared dataset made of them."""
