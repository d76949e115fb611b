package com.example.routing

import android.graphics.Bitmap
import android.graphics.Matrix
import android.view.OrientationEventListener
import androidx.activity.ComponentActivity
import androidx.camera.core.CameraSelector
import androidx.camera.core.ImageAnalysis
import androidx.camera.core.ImageProxy
import androidx.camera.core.Preview
import androidx.camera.lifecycle.ProcessCameraProvider
import androidx.camera.view.PreviewView
import androidx.core.content.ContextCompat
import java.util.concurrent.Executor

/**
 * The frames of the back camera, upright.
 *
 * @param onFrame is called by the executor. Frames that arrive during a call are dropped.
 * @param onError is called on the main thread.
 */
class CameraFeed(
    private val activity: ComponentActivity,
    private val view: PreviewView,
    private val executor: Executor,
    private val onFrame: (Bitmap) -> Unit,
    private val onError: (Exception) -> Unit,
) {
    private var provider: ProcessCameraProvider? = null
    private var wanted = false
    private val analysis = ImageAnalysis.Builder()
        .setBackpressureStrategy(ImageAnalysis.STRATEGY_KEEP_ONLY_LATEST)
        .setOutputImageFormat(ImageAnalysis.OUTPUT_IMAGE_FORMAT_RGBA_8888)
        .build()

    // The activity lives on when the phone is turned, and the screen of a locked one does not turn.
    private val turning = object : OrientationEventListener(activity) {
        override fun onOrientationChanged(orientation: Int) {
            // Unknown where the phone lies flat: the frames stay as they were.
            if (orientation == ORIENTATION_UNKNOWN) return
            analysis.targetRotation = rotationOf(orientation)
        }
    }

    init {
        analysis.setAnalyzer(executor) { frame -> frame.use { onFrame(upright(it)) } }
    }

    /** Follows the turns of the phone, or stops to: the sensor takes power. */
    fun followTurns(follow: Boolean) = if (follow) turning.enable() else turning.disable()

    fun start() {
        wanted = true
        val future = ProcessCameraProvider.getInstance(activity)
        val bind = Runnable {
            try {
                provider = future.get()
                if (wanted) bind(future.get())
            } catch (error: Exception) {
                onError(error)
            }
        }
        future.addListener(bind, ContextCompat.getMainExecutor(activity))
    }

    fun stop() {
        wanted = false
        provider?.unbindAll()
    }

    private fun bind(provider: ProcessCameraProvider) {
        val preview = Preview.Builder().build()
        preview.setSurfaceProvider(view.surfaceProvider)
        provider.unbindAll()
        val camera = CameraSelector.DEFAULT_BACK_CAMERA
        provider.bindToLifecycle(activity, camera, preview, analysis)
    }

    private fun upright(frame: ImageProxy): Bitmap {
        val bitmap = frame.toBitmap()
        val degrees = frame.imageInfo.rotationDegrees
        if (degrees == 0) return bitmap
        val turn = Matrix().apply { postRotate(degrees.toFloat()) }
        return Bitmap.createBitmap(bitmap, 0, 0, bitmap.width, bitmap.height, turn, true)
    }
}

/**
 * Returns the `Surface.ROTATION_` constant, 0 to 3, of a phone that is turned clockwise by some
 * degrees, 0 to 359. The constants count quarter turns to the other side.
 */
internal fun rotationOf(degrees: Int) = (4 - (degrees + 45) / 90) % 4
