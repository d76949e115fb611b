package com.example.routing

/** Channel 0, 1, 2 of an ARGB pixel: red, green, blue, 0 to 255. */
internal fun valueOf(pixel: Int, channel: Int) = (pixel shr (16 - 8 * channel)) and 0xff
