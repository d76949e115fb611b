package com.example.routing

import kotlin.math.abs
import kotlin.math.exp

/**
 * A file of the layout "staged", whose signatures the caller runs in turn.
 *
 * It does what `keras_dsnet/export/staged_runtime.py` does.
 */
class StagedModel(private val file: RoutedFile, private val signatures: Signatures) : RoutedModel {
    private val segments = if (file.gateRoutes.isEmpty()) 1 else file.numGates

    private class Run(val path: List<Int>, val results: Map<String, Any>)

    override fun classify(image: Any, maxWidth: Int, threshold: Float?): Prediction {
        val trunk = signatures.run("trunk", mapOf("image" to image))
        var run = runPath(trunk, List(segments) { startsWithin(maxWidth) })
        // As in the graph of other layouts, an image goes on one step at a time.
        for ((position, step) in file.steps.withIndex()) {
            if (step <= run.path.max()) continue
            val place = maxOf(0, position - 1)
            val limit = threshold ?: file.thresholds[place]
            if (step > maxWidth || !goesOn(confidenceOf(run.results), limit)) break
            run = runPath(trunk, List(segments) { listOf(step) })
        }
        val path = if (segments == 1) List(file.numGates) { run.path[0] } else run.path
        val used = threshold != null && file.steps.isNotEmpty()
        return Prediction(floats(run.results, "output"), path.toIntArray(), used)
    }

    /** A threshold of 0 lets no image go on, and a threshold of 1 lets every image go on. */
    private fun goesOn(confidence: Float, threshold: Float) =
        threshold >= 1f || (threshold > 0f && confidence <= threshold)

    /** Returns the widths at which an image may start. */
    private fun startsWithin(maxWidth: Int): List<Int> {
        val inside = file.routes.filter { it <= maxWidth }
        val preferred = file.gateRoutes.ifEmpty { file.steps }
        val right = inside.filter { it in preferred }
        if (right.isEmpty()) return inside.ifEmpty { file.routes }.take(1)
        return if (file.gateRoutes.isEmpty()) right.take(1) else right
    }

    /** Runs all segments; each gate chooses among the widths that it is allowed. */
    private fun runPath(trunk: Map<String, Any>, allowed: List<List<Int>>): Run {
        val path = mutableListOf<Int>()
        var results = trunk
        for ((index, widths) in allowed.withIndex()) {
            val width = widths.singleOrNull() ?: choose(index, floats(results, "scores"), widths)
            for (signature in signaturesOf(index + 1, path.lastOrNull(), width)) {
                val features = results.filterKeys { it.startsWith("features") }
                results = signatures.run(signature, features)
            }
            path += width
        }
        return Run(path, results)
    }

    /** Returns the best-scored one of some widths, the narrowest of equal ones. */
    private fun choose(gate: Int, scores: FloatArray, widths: List<Int>): Int {
        val ratios = file.choiceRatios[gate] ?: return widths.maxByOrNull { scores[it] }!!
        val ratio = 1f / (1f + exp(-scores[0]))
        return widths.minByOrNull { abs(ratio - ratios[it]) }!!
    }

    /** Returns the signatures that run a segment, which is counted from 1. */
    private fun signaturesOf(segment: Int, before: Int?, width: Int): List<String> {
        if (segments == 1) return listOf("route_$width")
        if (segment == 1) return listOf("segment_1_to_$width")
        val entry = "segment_${segment}_${before}_to_$width"
        // Two narrowest widths have one signature for both.
        if (before == width && width == file.routes[0]) return listOf(entry)
        return listOf(entry, "segment_${segment}_to_$width")
    }

    /** Returns the largest softmax probability, or 0 where it is not a number. */
    private fun confidenceOf(results: Map<String, Any>): Float {
        val logits = floats(results, if ("logits" in results) "logits" else "output")
        val largest = logits.max()
        val confidence = 1f / logits.map { exp(it - largest) }.sum()
        return if (confidence >= 0f) confidence else 0f
    }
}
