@file:Suppress("UNUSED_PARAMETER", "unused")

package androidx.activity.result

import androidx.activity.result.contract.ActivityResultContracts.PickVisualMedia.VisualMediaType

abstract class ActivityResultLauncher<I> {
    fun launch(input: I): Unit = TODO()
}

class PickVisualMediaRequest

fun PickVisualMediaRequest(mediaType: VisualMediaType): PickVisualMediaRequest = TODO()
