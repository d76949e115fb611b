package com.example.routing

import android.content.Context
import android.graphics.Bitmap
import com.google.ai.edge.litert.Accelerator

/** The name of the model in app/src/main/assets. */
const val MODEL = "model.tflite"

/** What runs the file. */
enum class Engine(val label: String, val accelerator: Accelerator?) {
    INTERPRETER("Interpreter, CPU", null),
    CPU("CompiledModel, CPU", Accelerator.CPU),
    GPU("CompiledModel, GPU", Accelerator.GPU),
    NPU("CompiledModel, NPU", Accelerator.NPU),
}

/** A prediction, and how long the signatures ran. */
class TimedPrediction(val prediction: Prediction, val milliseconds: Double)

/**
 * A file that is ready to run. It serves one image at a time, and not on the main thread.
 *
 * @throws IllegalArgumentException if the file or the engine does not fit.
 */
class OpenedModel(context: Context, engine: Engine, threads: Int = 1) : AutoCloseable {
    private val content = mapAsset(context, MODEL)
    val file = RoutedFile.read(content)
    private val crop = CentreCrop(file.width, file.height, file.cropFraction)
    private val tensor = ImageTensor(file)
    private val signatures: Signatures
    private val model: RoutedModel

    init {
        require(!file.split) { "The app takes one file: export without split=True" }
        signatures = when (val accelerator = engine.accelerator) {
            null -> InterpreterSignatures(content, file, threads)
            else -> CompiledSignatures(context.assets, MODEL, file, accelerator, threads)
        }
        model = when (file.layout) {
            "staged" -> StagedModel(file, signatures)
            else -> GraphModel(file, signatures)
        }
    }

    /** Runs a bitmap; see `RoutedModel.classify`. */
    @Synchronized
    fun classify(bitmap: Bitmap, maxWidth: Int, threshold: Float?): TimedPrediction {
        val image = tensor.of(crop.pixelsOf(bitmap))
        val start = System.nanoTime()
        val prediction = model.classify(image, maxWidth, threshold)
        return TimedPrediction(prediction, (System.nanoTime() - start) / 1e6)
    }

    @Synchronized
    override fun close() = signatures.close()
}
