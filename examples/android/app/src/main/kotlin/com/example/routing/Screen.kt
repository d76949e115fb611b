package com.example.routing

import android.content.Context
import android.graphics.Bitmap
import android.view.View
import android.view.ViewGroup
import android.widget.AdapterView
import android.widget.ArrayAdapter
import android.widget.Button
import android.widget.ImageView
import android.widget.LinearLayout
import android.widget.ScrollView
import android.widget.SeekBar
import android.widget.Spinner
import android.widget.TextView
import androidx.camera.view.PreviewView
import java.util.Locale

// Positions of the slider of the threshold.
private const val THRESHOLD_STEPS = 100
private const val TOP = 3

/** The views of the app, and what they show. */
class Screen(context: Context) {
    val camera = PreviewView(context)
    val cameraButton = Button(context).apply { text = "Camera" }
    val photoButton = Button(context).apply { text = "Photograph" }
    private val photo = ImageView(context).apply { contentDescription = "The photograph" }
    private val engines = Spinner(context).apply { contentDescription = "Engine" }
    private val widthText = TextView(context)
    private val widthSlider = SeekBar(context)
    private val thresholdText = TextView(context)
    private val thresholdSlider = SeekBar(context)
    private val result = TextView(context)
    private var routes = listOf<Int>()
    private var routesByConfidence = false
    private var fileThresholds = floatArrayOf()
    private var isThresholdChosen = false

    val root: View = ScrollView(context).apply {
        fitsSystemWindows = true
        val column = LinearLayout(context).apply { orientation = LinearLayout.VERTICAL }
        val buttons = LinearLayout(context).apply {
            addView(cameraButton)
            addView(photoButton)
        }
        // The same after a turn, which makes no new screen.
        val metrics = context.resources.displayMetrics
        val height = minOf(metrics.heightPixels, metrics.widthPixels) * 2 / 3
        val image = ViewGroup.LayoutParams(ViewGroup.LayoutParams.MATCH_PARENT, height)
        // Above the images, so that no size of the screen hides them.
        column.addView(buttons)
        column.addView(camera, image)
        column.addView(photo, image)
        for (view in listOf(
            result, engines, widthText, widthSlider, thresholdText, thresholdSlider,
        )) column.addView(view)
        addView(column)
    }

    init {
        camera.visibility = View.GONE
        photo.visibility = View.GONE
    }

    // Written by the main thread and read by that of the model.

    /** The largest width that may run. */
    @Volatile
    var maxWidth = Int.MAX_VALUE
        private set

    /**
     * The threshold that the user has chosen, or null for those of the file, which may not route by
     * confidence.
     */
    @Volatile
    var threshold: Float? = null
        private set

    /** Calls a function with the chosen engine, at first too. */
    fun onEngine(chosen: (Engine) -> Unit) {
        val labels = Engine.entries.map { it.label }
        val context = engines.context
        val row = android.R.layout.simple_spinner_dropdown_item
        engines.adapter = ArrayAdapter(context, row, labels)
        engines.onItemSelectedListener = object : AdapterView.OnItemSelectedListener {
            override fun onItemSelected(
                parent: AdapterView<*>?,
                view: View?,
                position: Int,
                id: Long,
            ) = chosen(Engine.entries[position])

            override fun onNothingSelected(parent: AdapterView<*>?) = Unit
        }
    }

    /** Calls a function whenever a slider has moved. */
    fun onSliders(moved: () -> Unit) {
        for (slider in listOf(widthSlider, thresholdSlider)) {
            slider.setOnSeekBarChangeListener(object : SeekBar.OnSeekBarChangeListener {
                override fun onProgressChanged(bar: SeekBar?, progress: Int, fromUser: Boolean) {
                    if (fromUser && slider === thresholdSlider) isThresholdChosen = true
                    showSliders()
                    if (fromUser) moved()
                }

                override fun onStartTrackingTouch(bar: SeekBar?) = Unit

                override fun onStopTrackingTouch(bar: SeekBar?) = Unit
            })
        }
    }

    /** Gives the sliders the widths and the threshold of a file that was opened. */
    fun showFile(file: RoutedFile) {
        showMessage("Start the camera, or pick a photograph.")
        if (routes == file.routes) return
        routes = file.routes
        routesByConfidence = file.steps.size > 1
        fileThresholds = file.thresholds
        isThresholdChosen = false
        widthSlider.max = routes.size - 1
        widthSlider.progress = routes.size - 1
        thresholdSlider.max = THRESHOLD_STEPS
        thresholdSlider.isEnabled = routesByConfidence
        if (routesByConfidence) {
            thresholdSlider.progress = Math.round(THRESHOLD_STEPS * file.thresholds[0])
        }
        showSliders()
    }

    fun showPhotograph(bitmap: Bitmap) {
        photo.setImageBitmap(bitmap)
        showsCamera(false)
    }

    fun showsCamera(shown: Boolean) {
        camera.visibility = if (shown) View.VISIBLE else View.GONE
        photo.visibility = if (shown) View.GONE else View.VISIBLE
        // A screen reader reads the result of a photograph, and not those of every frame.
        result.accessibilityLiveRegion =
            if (shown) View.ACCESSIBILITY_LIVE_REGION_NONE
            else View.ACCESSIBILITY_LIVE_REGION_POLITE
    }

    fun showResult(file: RoutedFile, timed: TimedPrediction) {
        val prediction = timed.prediction
        val best = prediction.output.indices.sortedByDescending { prediction.output[it] }.take(TOP)
        val lines = best.map { index ->
            val name = file.labels?.getOrNull(index) ?: "class $index"
            String.format(Locale.ROOT, "%s  %.3f", name, prediction.output[index])
        }
        val time = String.format(Locale.ROOT, "%.1f ms", timed.milliseconds)
        val path = "widths ${prediction.path.joinToString(", ")} in $time"
        val note =
            if (threshold == null || prediction.usedThreshold) ""
            else "\nAt this largest width the file routes without the threshold of the slider."
        result.text = "$path\n${lines.joinToString("\n")}$note"
    }

    fun showMessage(message: String) {
        result.text = message
    }

    private fun showSliders() {
        maxWidth = routes.getOrElse(widthSlider.progress) { Int.MAX_VALUE }
        // The positions of the slider are too coarse for the thresholds of a file.
        threshold =
            if (isThresholdChosen) thresholdSlider.progress / THRESHOLD_STEPS.toFloat() else null
        widthText.text = "Largest width: $maxWidth"
        thresholdText.text = threshold?.let { String.format(Locale.ROOT, "Threshold: %.2f", it) }
            ?: if (routesByConfidence) "Thresholds of the file: ${fileThresholds.joinToString()}"
            else "Threshold: the file does not route by confidence"
        widthSlider.contentDescription = widthText.text
        thresholdSlider.contentDescription = thresholdText.text
    }
}
