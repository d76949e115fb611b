package com.example.routing

import android.content.ContentResolver
import android.graphics.Bitmap
import android.graphics.ImageDecoder
import android.net.Uri
import kotlin.math.min

// Larger photographs are decoded smaller: the networks take images of a few hundred pixels.
private const val SHORT_SIDE = 1024

/**
 * Decodes a picked photograph, upright as its EXIF data say.
 *
 * @throws java.io.IOException if it cannot be decoded.
 */
fun decodePhotograph(resolver: ContentResolver, uri: Uri): Bitmap =
    ImageDecoder.decodeBitmap(ImageDecoder.createSource(resolver, uri)) { decoder, info, _ ->
        // A canvas cannot draw a bitmap that lies in the memory of the GPU.
        decoder.allocator = ImageDecoder.ALLOCATOR_SOFTWARE
        // The short side is the one that the crop of a network resizes.
        val side = min(info.size.width, info.size.height)
        if (side > SHORT_SIDE) decoder.setTargetSampleSize(side / SHORT_SIDE)
    }
